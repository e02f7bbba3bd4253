//! Go or no-go as root asks for it where the packages are: on the host of a backend that belongs to another user.

use serde_json::Value;
use viworks_testkit::binaries::workspace;

use super::{Site, typed};

/// What is typed, and what the key for it has to be allowed.
const PAGE: &str = "docs/operations/validation.md";

/// All that the page says so of.
const SCOPES: &str = "gateways:read,runs:read,runs:write,telemetry:read,health:read,pins:read";

/// Those that take seconds, and those that measure nothing that others on this machine hold up.
const CHECKS: &str = "health,configuration,mtls,registration,round_trip,data_flow,renewal,pins";

impl Site {
    /// What is typed on its page, with a key that may do no more than it has to, from a folder that is root's, and with
    /// settings around that are not meant for it.
    pub(super) fn root_validates_it_as_the_backends_user_and_leaves_nothing(&self) {
        self.machine.shell(&format!(
            "cd /var/lib/viworks-backend
             runuser -u viworks-backend -- viworks-backend-agent apikey create \\
               --config /etc/viworks/backend/backend.toml --name validation --scopes {SCOPES} --out validation.key
             install -m 600 validation.key /root/validation.key
             rm validation.key
             ln -s /etc/viworks/backend /root/site"
        ));
        let page = std::fs::read_to_string(workspace().join(PAGE)).unwrap();
        for scope in SCOPES.split(',') {
            assert!(page.contains(&format!("`{scope}`")), "{scope}");
        }
        let mut line = typed(PAGE).remove(0);
        for (there, here) in [
            ("/root/desk.key", "/root/validation.key"),
            // By a relative path, and through a link.
            ("/etc/viworks/backend/", "site/"),
        ] {
            assert!(line.contains(there), "{there} is not in: {line}");
            line = line.replace(there, here);
        }
        let agents = "grep -lsx viworks-gateway /proc/[0-9]*/comm | wc -l";
        let temporary =
            "find /tmp /var/tmp -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' | sort";
        let look = || [agents, temporary].map(|line| self.machine.shell(line));
        let before = look();
        let said = self.machine.shell(&format!(
            "cd /root
             export VIWORKS__API__NO_SUCH_KEY=1 VIWORKS__OUTBOUND__NO_SUCH_KEY=1
             {} --only {CHECKS}",
            line.trim()
        ));
        assert!(said.contains("  GO   8 of 8 in "), "{said}");

        let reports = "cd /root/reports; stat -c %U validation.json validation.xml";
        assert_eq!(self.machine.shell(reports), "root\nroot\n");
        let report = std::fs::read(self.machine.path("/root/reports/validation.json")).unwrap();
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["verdict"], "go", "{report}");

        let gateways = self.viworks("gateway ls -o json");
        let gateways: Value = serde_json::from_str(&gateways).unwrap();
        let issued = |gateway: &&Value| {
            let name = gateway["name"].as_str().unwrap();
            name.starts_with("validation-")
        };
        let mut issued = gateways["items"].as_array().unwrap().iter().filter(issued);
        let gateway = issued.next().unwrap();
        assert_eq!(gateway["status"], "revoked", "{gateways}");
        assert_eq!(issued.next(), None, "{gateways}");

        assert_eq!(look(), before, "agents, and temporary files");
        let roots = "find /etc/viworks/backend /var/lib/viworks-backend ! -user viworks-backend";
        assert_eq!(self.machine.shell(roots), "");
        self.machine
            .shell("rm -r /root/site /root/reports /root/validation.key");
    }
}
