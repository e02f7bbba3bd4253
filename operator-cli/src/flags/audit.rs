//! What `viworks audit` takes.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::value::{record, rows, some_time};

/// What to do with the audit trail.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List records, latest first; of several conditions, those that meet all
    #[command(
        after_help = "Examples:\n  viworks audit ls\n  viworks audit ls -g gw-berlin --since 1d\n  viworks audit ls --action gateway.revoke --all\n  viworks audit ls --by desk --outcome refused -o json\n  viworks audit ls --on ticket:01940f5e-7000-7000-8000-0000000000d1"
    )]
    Ls(ListAudit),
    /// Show one record whole
    #[command(after_help = "Example:\n  viworks audit show 81")]
    Show {
        /// Its number, as the list has it
        #[arg(value_name = "NUMBER", value_parser = record)]
        id: u64,
    },
}

/// Which records.
#[derive(Debug, Args)]
pub struct ListAudit {
    /// Only what this gateway did and what was done to it: its name or id
    #[arg(short, long, value_name = "GATEWAY")]
    pub gateway: Option<String>,
    /// Only what was done by this one: the name of an API key or gateway, or what the record has, such as 'local:uid 0'
    #[arg(long, value_name = "WHO")]
    pub by: Option<String>,
    /// Only what was done to this: the name of an API key or gateway, or what the record has, such as run:01…
    #[arg(long, value_name = "WHAT")]
    pub on: Option<String>,
    /// Only this action, such as gateway.revoke, or a whole family, such as gateway
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// Only what ended like this: done, refused or noted
    #[arg(long, value_name = "OUTCOME", value_parser = ["done", "refused", "noted"])]
    pub outcome: Option<String>,
    /// Only what was recorded in this time, such as 2h or 7d
    #[arg(long, value_name = "SPAN", value_parser = some_time)]
    pub since: Option<Duration>,
    /// Most rows
    #[arg(long, value_name = "ROWS", value_parser = rows, default_value = "20", conflicts_with = "all")]
    pub limit: usize,
    /// All rows, however many
    #[arg(long)]
    pub all: bool,
}
