//! The same without packages: what is taken to other systems, and the script that installs it there.

use std::process::Command;

use viworks_testkit::binaries::{Binaries, workspace};

use super::{GATEWAY, Site, set_up};

/// The script, as it lies in the archive.
const SCRIPT: &str = "/root/archive/scripts/install-service.sh";

impl Site {
    /// What the packages have brought is theirs.
    pub(super) fn the_script_leaves_packages_alone(&self) {
        self.unpack_archive();
        for verb in ["install", "uninstall", "purge"] {
            let refused = self
                .machine
                .attempt(&["/bin/sh", SCRIPT, verb, "backend", "gateway"]);
            assert_eq!(refused.status.code(), Some(6));
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("dpkg --remove viworks-backend"), "{said}");
        }
        self.machine.shell("rm -r /root/archive");
    }

    /// One that ignores half of a unit is not given it.
    fn the_script_refuses_an_older_systemd(&self) {
        self.machine.shell(
            "mkdir /root/older
             printf '#!/bin/sh\necho \"systemd 247 (247.3-7)\"\n' >/root/older/systemctl
             chmod 755 /root/older/systemctl",
        );
        let line = format!("PATH=/root/older:$PATH {SCRIPT} install cli");
        let refused = self.machine.attempt(&["/bin/sh", "-c", &line]);
        assert_eq!(refused.status.code(), Some(69));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("this is systemd 247"), "{said}");
        self.machine.shell("rm -r /root/older");
    }

    /// What is taken to systems without packages.
    fn unpack_archive(&self) {
        let (binaries, here) = (Binaries::shipped(), workspace());
        let archive = self.machine.path("/root/archive");
        for (from, to) in [
            (binaries.backend(), "bin/viworks-backend-agent"),
            (binaries.gateway(), "bin/viworks-gateway-agent"),
            (binaries.helper(), "bin/viworks-gateway-helper"),
            (binaries.cli(), "bin/viworks"),
            (here.join("target/packaging/man"), "man"),
            (here.join("systemd"), "systemd"),
            (here.join("common/catalogue"), "catalogue"),
            (here.join("packaging/helper.d"), "helper.d"),
            (here.join("nginx"), "nginx"),
            (
                here.join("scripts/install-service.sh"),
                "scripts/install-service.sh",
            ),
        ] {
            let to = archive.join(to);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
            assert!(copied.unwrap().success());
        }
    }

    /// The same life without packages, by the script.
    pub(super) async fn a_script_does_the_same_without_packages(&self) {
        self.machine.shell(
            "rm -r /etc/systemd/system/viworks-gateway-agent.service.d; systemctl daemon-reload",
        );
        self.unpack_archive();
        self.the_script_refuses_an_older_systemd();
        let parts = "backend gateway cli";
        let script = SCRIPT;
        let would = self
            .machine
            .shell(&format!("{script} install --dry-run {parts}"));
        assert!(
            would.contains("would run: systemctl enable --now"),
            "{would}"
        );
        self.is_clean();
        self.machine.shell(&format!("{script} install {parts}"));
        self.machine.shell(&set_up());
        self.works().await;

        let before = self.process(GATEWAY);
        self.machine
            .shell("echo '# ours' >>/etc/viworks/commands.d/10-gateway.toml");
        let said = self.machine.shell(&format!("{script} install {parts}"));
        assert!(
            said.contains("kept: /etc/viworks/commands.d/10-gateway.toml"),
            "{said}"
        );
        self.is_back(GATEWAY, &before).await;
        self.works().await;

        self.machine.shell(&format!("{script} uninstall {parts}"));
        let masked = "systemctl mask viworks-gateway-agent";
        let unmask = "systemctl unmask viworks-gateway-agent";
        let said = self.machine.shell(&format!(
            "{masked}; {script} install gateway; {script} uninstall gateway; {unmask}"
        ));
        assert!(
            said.contains("viworks-gateway-agent.service is masked"),
            "{said}"
        );
        self.machine.shell("ls /etc/viworks/gateway.toml /var/lib/viworks-backend/backend.sqlite; ! ls /usr/bin/viworks*");
        self.machine.shell(&format!("{script} install {parts}"));
        self.works().await;
        self.machine.shell(&format!("{script} purge {parts}"));
        self.is_clean();
    }
}
