//! The page of upgrades, typed as it stands: forth, back on the same database, and back to the copy.

use viworks_testkit::dump;
use viworks_testkit::packages::Packages;

use super::{BACKEND, Site, typed};

/// How the packages' files are named on the page.
const LATER: &str = "viworks-backend_later.deb";
const EARLIER: &str = "viworks-backend_EARLIER.deb";

impl Site {
    /// Types blocks of the page one after the other, in the folder that has the packages.
    fn types(&self, blocks: &[String]) -> String {
        let lines = blocks.join("\n");
        self.machine.shell(&format!("cd /root/upgrade\n{lines}"))
    }

    pub(super) async fn an_upgrade_and_its_rollbacks_go_as_the_page_says(
        &self,
        [first, second]: [&Packages; 2],
    ) {
        let blocks = typed("docs/operations/upgrade.md");
        let [before, copy, upgrade, back, restore] = <[String; 5]>::try_from(blocks).unwrap();
        let folder = self.machine.path("/root/upgrade");
        std::fs::create_dir(&folder).unwrap();
        let bring = |packages: &Packages, name: &str| {
            let package = packages.of("viworks-backend-agent");
            std::fs::copy(package, folder.join(name)).unwrap();
        };
        bring(second, LATER);
        let earlier = self.process(BACKEND);
        let said = self.types(&[before, copy, upgrade]);
        assert!(said.contains("Active: active (running)"), "{said}");
        self.is_back(BACKEND, &earlier).await;
        self.works().await;

        std::fs::remove_file(folder.join(LATER)).unwrap();
        bring(first, EARLIER);
        self.types(std::slice::from_ref(&back));
        self.works().await;

        // As if the later version had changed the schema.
        self.machine.shell(&format!("systemctl stop {BACKEND}"));
        dump::note_later_migration(&self.machine.path("/var/lib/viworks-backend/backend.sqlite"));
        let started = self.machine.attempt(&["systemctl", "start", BACKEND]);
        assert!(!started.status.success());
        let property = |name: &str| self.machine.property(BACKEND, name);
        assert_eq!(
            [
                property("SubState"),
                property("ExecMainStatus"),
                property("NRestarts")
            ],
            ["failed", "78", "0"]
        );
        let log = self
            .machine
            .shell(&format!("journalctl --unit={BACKEND} --lines=20"));
        assert!(
            log.contains("use the newer program or restore a backup"),
            "{log}"
        );
        self.types(&[restore]);
        self.works().await;
        self.machine
            .shell("rm -r /root/upgrade /var/lib/viworks-backend.*");
    }
}
