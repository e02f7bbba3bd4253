//! An example of a configuration in which every key stands with what it is for; written from what its reader declares.

use super::document::Document;
use super::key::{Default, KeyReference, Kind};

/// How long a line may be.
const COLUMNS: usize = 100;

impl Document {
    /// Everything that was declared so far, as a file: what has to be given stands there as an example, everything else
    /// as a comment with its default. `whose` configuration it is.
    pub(super) fn example(&self, whose: &str) -> String {
        let mut lines = Vec::new();
        comment(
            &mut lines,
            &format!(
                "An example of the configuration of {whose}: what stands here has to be given; what is behind a # is left \
                 out, and says the default or, where there is none, an example."
            ),
        );
        let sections = self.sections.iter().filter(|section| !section.repeated);
        for section in sections {
            lines.push(String::new());
            comment(&mut lines, &section.help);
            lines.push(format!("[{}]", section.section));
            if section.free {
                lines.push("#key = \"value\"".to_owned());
            }
            let keys = self.keys.iter();
            for key in keys.filter(|key| key.section == section.section) {
                lines.push(String::new());
                comment(&mut lines, &format!("{} ({})", key.help, key.kind));
                lines.push(line(key));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

fn line(key: &KeyReference) -> String {
    let name = &key.key;
    let example = match (&key.kind, key.example) {
        (Kind::Confession(word), _) => word.as_str(),
        (_, example) => example.unwrap_or("…"),
    };
    let example = key.kind.written(example);
    match &key.default {
        Default::Required => format!("{name} = {example}"),
        Default::Nothing(_) => format!("#{name} = {example}"),
        Default::Value(value) => format!("#{name} = {value}"),
    }
}

/// Words behind `#`, in lines that are not too long.
fn comment(lines: &mut Vec<String>, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(std::mem::replace(&mut line, String::from("#")));
        }
        line.push(' ');
        line.push_str(word);
    }
    lines.push(line);
}
