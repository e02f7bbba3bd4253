//! The packages under a real systemd: installed, started, killed, reloaded, broken, upgraded, removed and purged.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use viworks_testkit::binaries::workspace;
use viworks_testkit::machine::Machine;
use viworks_testkit::packages::Packages;
use viworks_testkit::process::eventually;

mod proxy;
mod restart;
mod script;
mod upgrade;
mod validation;

const BACKEND: &str = "viworks-backend-agent.service";
const GATEWAY: &str = "viworks-gateway-agent.service";

/// What tells how to do all of this.
const PAGE: &str = "docs/operations/services.md";

/// What a package says on a machine that is not set up.
const NEXT: [&str; 4] = [
    "viworks-backend-agent pki init",
    "viworks ticket create",
    "viworks-gateway-agent enroll",
    "systemctl start viworks-gateway-agent",
];

/// How long a service may take to be where it should be; it is restarted after two seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that somebody adds.
const ADDED: &str = "[[command]]\nname = \"test.added\"\ntitle = \"came later\"\nrisk = \"read\"\nidempotent = true\n\
                     argv = [\"/usr/bin/id\", \"-un\"]\n";

/// One that runs as another user and does not end, nor does what has left its session.
const STAYS: &str = "[[command]]\nname = \"test.stay\"\ntitle = \"stays\"\nrisk = \"read\"\nidempotent = false\n\
                     user = \"daemon\"\nargv = [\"/bin/sh\", \"-c\", \"setsid sleep 600 & exec sleep 600\"]\n";

/// The blocks that a page tells to type here.
fn typed(page: &str) -> Vec<String> {
    typed_in(page, "e2e/tests/it/services")
}

/// The blocks that a page says are typed in these tests.
pub(crate) fn typed_in(page: &str, tests: &str) -> Vec<String> {
    let page = std::fs::read_to_string(workspace().join(page)).unwrap();
    let blocks = page.split("\n```sh ").skip(1).filter_map(|block| {
        let (info, body) = block.split_once('\n').unwrap();
        let body = body.split_once("\n```").unwrap().0;
        info.contains(tests).then(|| body.to_owned())
    });
    blocks.collect()
}

/// What the page tells to type, for a backend and a gateway on the same machine.
fn set_up() -> String {
    let typed = typed(PAGE);
    assert_eq!(typed.len(), 2);
    typed.join("\n").replace("agents.example.org", "localhost")
}

/// What an operator there types.
fn viworks(arguments: &str) -> String {
    format!(
        "VIWORKS_SERVER=http://127.0.0.1:8080 VIWORKS_TOKEN_FILE=/root/desk.key viworks {arguments}"
    )
}

/// What is asked of a running site, and of what systemd has of it.
struct Site {
    machine: Machine,
}

impl Site {
    fn state(&self, unit: &str) -> String {
        self.machine.property(unit, "ActiveState")
    }

    fn process(&self, unit: &str) -> String {
        self.machine.property(unit, "MainPID")
    }

    /// Waits for words in the line that a service shows of itself.
    async fn says(&self, unit: &str, words: &str) {
        let what = format!("{unit} says {words:?}");
        eventually(&what, PATIENCE, async || {
            let said = self.machine.property(unit, "StatusText");
            said.contains(words).then_some(())
        })
        .await;
    }

    fn viworks(&self, arguments: &str) -> String {
        self.machine.shell(&viworks(arguments))
    }

    /// The same, whatever it comes to.
    fn attempt(&self, arguments: &str) -> Output {
        self.machine
            .attempt(&["/bin/sh", "-c", &viworks(arguments)])
    }

    /// A command's way through all of it.
    async fn works(&self) {
        self.is_connected_to("wss://localhost:8081").await;
        let said = self.viworks("run sys.uptime --gateway gw-1");
        assert!(said.contains("load"), "{said}");
    }

    /// Waits until both ends say that the gateway is connected, to this URL.
    async fn is_connected_to(&self, url: &str) {
        self.says(GATEWAY, &format!("connected to {url}")).await;
        // It may have said so of the connection before.
        eventually("the backend has the gateway", PATIENCE, async || {
            let shown = self.attempt("gateway show gw-1 -o json").stdout;
            let gateway: Value = serde_json::from_slice(&shown).ok()?;
            (gateway["status"] == "online").then_some(())
        })
        .await;
    }

    /// Runs as another process than `earlier`.
    async fn is_back(&self, unit: &str, earlier: &str) {
        let what = format!("{unit} is back");
        eventually(&what, PATIENCE, async || {
            // Asked one after the other, the state could be from before an end and the process from after it.
            let [state, process] = self.machine.properties(unit, ["ActiveState", "MainPID"]);
            (state == "active" && process != earlier).then_some(())
        })
        .await;
    }

    async fn killed_services_come_back(&self) {
        for unit in [BACKEND, GATEWAY] {
            let before = self.process(unit);
            self.machine.shell(&format!(
                "systemctl kill --kill-who=main --signal=KILL {unit}"
            ));
            self.is_back(unit, &before).await;
        }
        self.works().await;
    }

    /// One that stands still feeds no watchdog, and systemd starts it again.
    async fn services_that_stand_still_come_back(&self) {
        for unit in [BACKEND, GATEWAY] {
            // What the unit gives it takes too long for a test.
            self.machine.shell(&format!(
                "mkdir -p /run/systemd/system/{unit}.d
                 printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/{unit}.d/watchdog.conf
                 systemctl daemon-reload; systemctl restart {unit}"
            ));
            let before = self.process(unit);
            let pid = &before;
            self.machine.shell(&format!("kill -STOP {pid}"));
            self.is_back(unit, &before).await;
            assert_ne!(self.machine.property(unit, "NRestarts"), "0");
            self.machine.shell(&format!(
                "journalctl --unit={unit} | grep -q 'Watchdog timeout'
                 rm -r /run/systemd/system/{unit}.d; systemctl daemon-reload; systemctl restart {unit}"
            ));
        }
        self.works().await;
    }

    async fn reloads_change_what_they_can_and_break_nothing(&self) {
        let (backend, gateway) = (self.process(BACKEND), self.process(GATEWAY));
        let added = self.machine.path("/etc/viworks/commands.d/50-added.toml");
        std::fs::write(added, ADDED).unwrap();
        self.machine.shell("systemctl reload viworks-gateway-agent");
        eventually("the added command runs", PATIENCE, async || {
            let said = self.attempt("run test.added --gateway gw-1");
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            // It says who it is.
            said.contains("viworks-gateway").then_some(())
        })
        .await;
        for (unit, file, reason) in [
            (
                BACKEND,
                "/etc/viworks/backend/backend.toml",
                "reload.configuration",
            ),
            (GATEWAY, "/etc/viworks/gateway.toml", "reload.configuration"),
        ] {
            self.machine.shell(&format!(
                "printf '[unknown]\\n' >>{file}; systemctl reload {unit}"
            ));
            self.says(unit, reason).await;
        }
        assert_eq!(
            (self.process(BACKEND), self.process(GATEWAY)),
            (backend, gateway)
        );
        self.works().await;
    }

    /// A start with the configuration that the reload has refused.
    async fn broken_configurations_stop_and_are_not_tried_again(&self) {
        for (unit, file) in [
            (GATEWAY, "/etc/viworks/gateway.toml"),
            (BACKEND, "/etc/viworks/backend/backend.toml"),
        ] {
            let started = self.machine.attempt(&["systemctl", "restart", unit]);
            assert!(!started.status.success());
            let sub = self.machine.property(unit, "SubState");
            // One that waits to be started again is `activating`, in `auto-restart`.
            assert_eq!(
                (self.state(unit).as_str(), sub.as_str()),
                ("failed", "failed")
            );
            assert_eq!(self.machine.property(unit, "ExecMainStatus"), "78");
            // Counted anew from each start that somebody asked for.
            assert_eq!(self.machine.property(unit, "NRestarts"), "0");
            self.machine
                .shell(&format!("sed -i '/^.unknown.$/d' {file}"));
        }
        self.machine
            .shell(&format!("systemctl start {BACKEND} {GATEWAY}"));
        self.works().await;
    }

    /// What a site lays over the files is read by the services, whoever has copied it there, and `check-config` agrees.
    async fn pieces_of_a_configuration_count(&self) {
        let folders = "stat -c '%a %U' /etc/viworks/conf.d /etc/viworks/backend/conf.d";
        assert_eq!(
            self.machine.shell(folders),
            "755 root\n700 viworks-backend\n"
        );
        self.machine.shell(
            "printf '[executor]\\nparallel_max = 2\\n' >/etc/viworks/conf.d/10-site.toml
             chown daemon: /etc/viworks/conf.d/10-site.toml; chmod 600 /etc/viworks/conf.d/10-site.toml
             printf '[queue]\\ntotal = 50000\\n' >/etc/viworks/backend/conf.d/10-site.toml
             systemctl restart viworks-backend-agent viworks-gateway-agent",
        );
        self.works().await;
        for (user, program, config, line) in [
            (
                "viworks-gateway",
                "viworks-gateway-agent",
                "/etc/viworks/gateway.toml",
                "parallel_max = 2 *# /etc/viworks/conf.d/10-site.toml:2",
            ),
            (
                "viworks-backend",
                "viworks-backend-agent",
                "/etc/viworks/backend/backend.toml",
                "total = 50000 *# /etc/viworks/backend/conf.d/10-site.toml:2",
            ),
        ] {
            self.machine.shell(&format!(
                "runuser -u {user} -- {program} check-config --config {config}
                 runuser -u {user} -- {program} config explain --config {config} | grep -x '{line}'"
            ));
        }
    }

    async fn a_key_can_be_a_credential(&self) {
        self.machine.shell(
            "mv /etc/viworks/gateway.key /root/gateway.key; chown root: /root/gateway.key
             sed -i 's|^key_file = .*|key_file = \"credential:gateway.key\"|' /etc/viworks/gateway.toml
             mkdir -p /etc/systemd/system/viworks-gateway-agent.service.d
             printf '[Service]\\nLoadCredential=gateway.key:/root/gateway.key\\n' \
               >/etc/systemd/system/viworks-gateway-agent.service.d/key.conf
             systemctl daemon-reload; systemctl restart viworks-gateway-agent",
        );
        self.works().await;
        // Whoever only asks is given no credential.
        self.machine
            .shell("runuser -u viworks-gateway -- viworks-gateway-agent status");
    }

    /// The backend's as well, and what its page tells to type for another verb; then it is as it was.
    async fn a_master_key_can_be_a_credential(&self) {
        self.machine.shell(
            "mv /etc/viworks/backend/master.key /root/master.key; chown root: /root/master.key
             sed -i 's|\"master.key\"|\"credential:master.key\"|' /etc/viworks/backend/backend.toml
             mkdir -p /etc/systemd/system/viworks-backend-agent.service.d
             printf '[Service]\\nLoadCredential=master.key:/root/master.key\\n' \
               >/etc/systemd/system/viworks-backend-agent.service.d/key.conf
             systemctl daemon-reload; systemctl restart viworks-backend-agent",
        );
        self.works().await;
        let page = std::fs::read_to_string(workspace().join(PAGE)).unwrap();
        let (_, typed) = page.split_once("`systemd-run ").unwrap();
        let (typed, _) = typed.split_once('`').unwrap();
        let said = self.machine.shell(&format!("systemd-run {typed}"));
        assert!(said.contains("active"), "{said}");
        self.machine.shell(
            "install -o viworks-backend -g viworks-backend -m 600 /root/master.key /etc/viworks/backend/
             sed -i 's|credential:||' /etc/viworks/backend/backend.toml
             rm -r /root/master.key /etc/systemd/system/viworks-backend-agent.service.d
             systemctl daemon-reload; systemctl restart viworks-backend-agent",
        );
        self.works().await;
    }

    /// Without a list, `service.restart` may not become root; with one, it does what it says.
    async fn commands_of_other_users_take_a_list_and_leave_nothing(&self) {
        let restart = "run service.restart unit=systemd-logind.service --gateway gw-1 --yes";
        let refused = self.attempt(restart);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("is not on the helper's list"),
            "{said}"
        );

        let before = self.process("systemd-logind.service");
        std::fs::write(
            self.machine.path("/etc/viworks/commands.d/60-stay.toml"),
            STAYS,
        )
        .unwrap();
        self.machine.shell(
            "cp /usr/share/viworks/helper.d/40-services.toml /etc/viworks/commands.d/60-stay.toml /etc/viworks/helper.d/
             systemctl reload viworks-gateway-agent",
        );
        eventually("a service is restarted", PATIENCE, async || {
            let restarted = self.attempt(restart);
            restarted.status.success().then_some(())
        })
        .await;
        assert_ne!(self.process("systemd-logind.service"), before);
        for end in [
            "systemctl kill --kill-who=main --signal=KILL viworks-gateway-agent",
            "systemctl kill --kill-who=main --signal=KILL 'viworks-gateway-helper@*'",
        ] {
            self.works().await;
            self.viworks("run test.stay --gateway gw-1 --no-wait");
            let running = || {
                let count = "grep -lsx sleep /proc/[0-9]*/comm | wc -l";
                self.machine.shell(count).trim().to_owned()
            };
            eventually("all of it runs", PATIENCE, async || {
                (running() == "2").then_some(())
            })
            .await;
            let limited = self
                .machine
                .shell("cat $(grep -lsx sleep /proc/[0-9]*/comm | sed 's/comm$/cgroup/')");
            assert!(
                limited.contains("/system-viworks_helper.slice/"),
                "{limited}"
            );
            self.machine.shell(end);
            eventually("nothing of it is left", PATIENCE, async || {
                (running() == "0").then_some(())
            })
            .await;
        }
        let left = self
            .machine
            .shell("systemctl list-units --all --plain --no-legend 'viworks-gateway-helper@*'");
        assert_eq!(left, "");
        self.works().await;
        let stranger = "runuser -u daemon -- sh -c 'test -w /run/viworks-gateway-helper.sock'";
        assert!(
            !self
                .machine
                .attempt(&["/bin/sh", "-c", stranger])
                .status
                .success()
        );
        self.machine
            .shell("rm /etc/viworks/commands.d/60-stay.toml /etc/viworks/helper.d/60-stay.toml");
    }

    async fn an_upgrade_keeps_everything(&self, packages: &Packages) {
        let (backend, gateway) = (self.process(BACKEND), self.process(GATEWAY));
        self.machine
            .shell("echo '# ours' >>/etc/viworks/commands.d/10-gateway.toml");
        let said = install(&self.machine, packages);
        for word in NEXT {
            assert!(!said.contains(word), "it is set up: {said}");
        }
        self.is_back(BACKEND, &backend).await;
        self.is_back(GATEWAY, &gateway).await;
        self.machine
            .shell("grep -qx '# ours' /etc/viworks/commands.d/10-gateway.toml");
        self.machine.shell(
            "ls /usr/share/viworks/nginx/nginx.conf /usr/share/viworks/nginx/nginx-terminate.conf",
        );
        self.works().await;
    }

    async fn removed_it_keeps_its_data_and_purged_nothing_stays(&self, packages: &Packages) {
        let names = "viworks-backend viworks-gateway viworks-cli";
        self.machine.shell(&format!("dpkg --remove {names}"));
        for path in [
            "/usr/bin/viworks",
            "/usr/lib/systemd/system/viworks-gateway-agent.service",
        ] {
            assert!(!self.machine.path(path).exists(), "{path}");
        }
        let kept = "/var/lib/viworks-backend /var/lib/viworks-gateway/journal.db /etc/viworks/gateway.toml \
                    /etc/viworks/backend/backend.toml /etc/viworks/commands.d/50-added.toml";
        self.machine.shell(&format!(
            "ls -d {kept} >/dev/null; ! grep -ls '^viworks-' /proc/[0-9]*/comm"
        ));
        drop(install(&self.machine, packages));
        self.works().await;

        // What an enrolment has begun, and what was put aside for one.
        self.machine.shell(
            "mkdir /etc/viworks/.enrolling /etc/viworks/before-1 /var/lib/viworks-gateway.before-1",
        );
        self.machine.shell(&format!("dpkg --purge {names}"));
        self.is_clean();
    }

    /// Nothing is left but what somebody else has written.
    fn is_clean(&self) {
        let left = self.machine.shell(
            "find / -xdev -name '*viworks*' -not -path '/root/*' -not -path '/proc/*' -not -path '/etc/systemd/system/*.d' \
               -not -path '/var/log/*' -not -path '/run/*'; getent passwd | grep viworks || true",
        );
        assert_eq!(left, "", "what a purge left");
    }
}

/// Installs them; what that says.
fn install(machine: &Machine, packages: &Packages) -> String {
    let files: Vec<String> = packages
        .files()
        .iter()
        .map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            std::fs::copy(file, machine.path("/root").join(name)).unwrap();
            format!("/root/{name}")
        })
        .collect();
    machine.shell(&format!("dpkg --install {}", files.join(" ")))
}

/// What the unit files ask for is what the manager has understood.
fn is_confined(site: &Site) {
    // Commands of other users, each by itself and all together.
    let (helper, slice) = (
        "viworks-gateway-helper@0.service",
        "system-viworks_helper.slice",
    );
    for (unit, name, value) in [
        (helper, "Slice", slice),
        (helper, "OOMPolicy", "continue"),
        (helper, "KillMode", "control-group"),
        (slice, "TasksMax", "512"),
        (slice, "CPUWeight", "50"),
    ] {
        assert_eq!(site.machine.property(unit, name), value, "{unit}: {name}");
    }
    assert_ne!(site.machine.property(slice, "MemoryMax"), "infinity");
    for (unit, tasks, files, weight) in [
        (BACKEND, "1024", "262144", "200"),
        (GATEWAY, "512", "16384", "50"),
    ] {
        for (name, value) in [
            ("Type", "notify"),
            ("Restart", "always"),
            ("RestartPreventExitStatus", "2 78"),
            ("StartLimitIntervalUSec", "0"),
            ("WatchdogUSec", "30s"),
            ("TasksMax", tasks),
            ("LimitNOFILE", files),
            ("CPUWeight", weight),
            ("NoNewPrivileges", "yes"),
            ("CapabilityBoundingSet", ""),
            ("ProtectSystem", "strict"),
        ] {
            assert_eq!(site.machine.property(unit, name), value, "{unit}: {name}");
        }
        for name in ["MemoryHigh", "MemoryMax"] {
            assert_ne!(
                site.machine.property(unit, name),
                "infinity",
                "{unit}: {name}"
            );
        }
        site.machine.shell(&format!(
            "systemd-analyze security --threshold=20 {unit} >/dev/null"
        ));
        let process = site.process(unit);
        let status = format!(
            "grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/{process}/status | tr '\\n\\t' ' '"
        );
        let status = site.machine.shell(&status);
        assert_eq!(
            status.trim(),
            "CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2",
            "{unit}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packages_live_and_die_under_systemd() {
    let Some(machine) = Machine::boot().await else {
        return;
    };
    let Some([first, second]) = Packages::built() else {
        return;
    };
    let said = install(&machine, first);
    for word in NEXT {
        assert!(said.contains(word), "what to do next: {said}");
    }
    let site = Site { machine };
    for unit in [BACKEND, GATEWAY] {
        // Without a configuration: not started, and not failed.
        assert_eq!(site.state(unit), "inactive");
        assert_eq!(site.machine.property(unit, "ConditionResult"), "no");
        assert_eq!(site.machine.property(unit, "UnitFileState"), "enabled");
    }
    site.machine.shell(&set_up());
    site.works().await;
    is_confined(&site);
    site.nginx_stands_in_front_of_it_as_its_page_says().await;
    site.root_validates_it_as_the_backends_user_and_leaves_nothing();
    site.a_gateway_whose_service_is_restarted_is_back_in_time()
        .await;
    site.commands_of_other_users_take_a_list_and_leave_nothing()
        .await;
    site.pieces_of_a_configuration_count().await;
    site.killed_services_come_back().await;
    site.services_that_stand_still_come_back().await;
    site.reloads_change_what_they_can_and_break_nothing().await;
    site.broken_configurations_stop_and_are_not_tried_again()
        .await;
    site.a_key_can_be_a_credential().await;
    site.a_master_key_can_be_a_credential().await;
    site.the_script_leaves_packages_alone();
    site.an_upgrade_and_its_rollbacks_go_as_the_page_says([first, second])
        .await;
    site.an_upgrade_keeps_everything(second).await;
    site.removed_it_keeps_its_data_and_purged_nothing_stays(second)
        .await;
    site.a_script_does_the_same_without_packages().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_machine_is_left_once_its_test_has_ended() {
    let Some(machine) = Machine::boot().await else {
        return;
    };
    let files = machine.path("/");
    let first = format!("/proc/{}/root", machine.leader());
    assert!(std::fs::exists(&first).unwrap() && files.exists());
    // As when the process ends: nobody holds what keeps the machine any more.
    drop(machine);
    assert!(!std::fs::exists(&first).unwrap() && !files.exists());
}
