//! A run's output while it comes.

use std::collections::BTreeMap;

use viworks_common::api::RunEvent;
use viworks_common::id::{CommandId, GatewayName};
use viworks_common::wire::message::OutputStream;

use crate::output::{self, Format, plain};

/// Live output as whole lines, each behind its gateway's name when there are several.
pub(super) struct Live {
    many: bool,
    format: Format,
    open: BTreeMap<(CommandId, OutputStream), (GatewayName, String)>,
}

impl Live {
    pub(super) const fn new(many: bool, format: Format) -> Self {
        Self {
            many,
            format,
            open: BTreeMap::new(),
        }
    }

    pub(super) fn show(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Output {
                command_id,
                gateway,
                stream,
                data,
                ..
            } => {
                if self.format == Format::Json {
                    return;
                }
                let (name, text) = self
                    .open
                    .entry((*command_id, *stream))
                    .or_insert_with(|| (gateway.name.clone(), String::new()));
                text.push_str(&data.text);
                let name = name.clone();
                while let Some(end) = text.find('\n') {
                    let line: String = text.drain(..=end).collect();
                    print_line(self.many, &name, &line);
                }
            }
            RunEvent::Missed { events } => {
                output::note(&format!(
                    "({events} live events were not received; the retained output is complete up to its stated bounds)"
                ));
            }
            RunEvent::Command { .. } | RunEvent::Finished { .. } => {}
        }
    }

    pub(super) fn flush(&mut self) {
        for (name, text) in std::mem::take(&mut self.open).into_values() {
            if !text.is_empty() {
                print_line(self.many, &name, &text);
            }
        }
    }
}

/// Live lines are narration: the result on standard output holds the retained output.
fn print_line(many: bool, gateway: &GatewayName, line: &str) {
    let line = plain(line.trim_end_matches(['\n', '\r']));
    if many {
        output::note(&format!("{gateway} │ {line}"));
    } else {
        output::note(&line);
    }
}
