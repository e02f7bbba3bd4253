//! Processor time that processes have used, as proc(5) tells it.

use std::time::Duration;

use anyhow::Context;

/// What `stat` says of a process behind its name: the state is the first of it.
struct Stat(Vec<String>);

impl Stat {
    /// Of the process with this id.
    fn of(process: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let rest = stat
            .rsplit_once(')')
            .context("a stat line without a name")?;
        Ok(Self(rest.1.split_whitespace().map(str::to_owned).collect()))
    }

    /// Field `number` of proc(5), whose count begins at 1 with the id and the name; 0 where it is no number.
    fn field(&self, number: usize) -> u64 {
        let field = number.checked_sub(3).and_then(|at| self.0.get(at));
        field.and_then(|it| it.parse().ok()).unwrap_or_default()
    }

    /// User and system (14, 15), in ticks.
    fn own(&self) -> u64 {
        self.field(14) + self.field(15)
    }

    /// The same of children that ended and were waited for (16, 17).
    fn ended(&self) -> u64 {
        self.field(16) + self.field(17)
    }
}

fn time(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_micros(ticks * 1_000_000 / per_second.max(1))
}

/// Of one process, user and system.
pub(crate) fn of_process(process: u32) -> anyhow::Result<Duration> {
    Ok(time(Stat::of(process)?.own()))
}

/// Of a process and of its children, those among them that ended.
pub(crate) fn of_family(process: u32) -> anyhow::Result<Duration> {
    let head = Stat::of(process)?;
    let mut ticks = head.own() + head.ended();
    for entry in std::fs::read_dir("/proc")? {
        let id = entry?.file_name().to_str().and_then(|it| it.parse().ok());
        // One that ends meanwhile is counted by its parent.
        let child = id.and_then(|id: u32| Stat::of(id).ok());
        ticks += child
            .filter(|it| it.field(4) == u64::from(process))
            .map_or(0, |it| it.own());
    }
    Ok(time(ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until this process has used so much more.
    fn use_up(more: Duration) {
        let began = of_process(std::process::id()).expect("it runs");
        while of_process(std::process::id()).expect("it runs") < began + more {
            std::hint::black_box((0..10_000_u64).sum::<u64>());
        }
    }

    #[test]
    fn a_family_has_what_its_members_used() {
        let this = std::process::id();
        let before = of_family(this).expect("it runs");
        use_up(Duration::from_millis(50));
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
            .spawn()
            .expect("a shell starts");
        child.wait().expect("it ends");
        let (own, family) = (of_process(this), of_family(this).expect("it runs"));
        assert!(family >= before + Duration::from_millis(50));
        assert!(family > own.expect("it runs"), "its child has used some");
    }
}
