//! Types the page of nginx in front of a backend as it stands, on the host of the packages.

use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, KeyPair};

use super::{GATEWAY, Site, typed, viworks};

const PAGE: &str = "docs/operations/reverse_proxy.md";

/// Where operators find the API, and where certbot would have put the certificate for it.
const API_NAME: &str = "api.example.org";
const CERTIFICATES: &str = "/etc/letsencrypt/live/api.example.org";

impl Site {
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    pub(super) async fn nginx_stands_in_front_of_it_as_its_page_says(&self) {
        if !self.machine.path("/usr/sbin/nginx").exists() {
            eprintln!(
                "SKIPPED: nginx on a machine: its image is without it; scripts/test.sh makes it anew"
            );
            return;
        }
        self.certificate_is_there();
        let blocks = <[String; 5]>::try_from(typed(PAGE)).unwrap();
        let [render, tell, start, gateways, check] = blocks.map(|block| {
            // The name that the certificate of this site's backend is for.
            block.replace("agents.example.org", "localhost")
        });
        self.machine.shell(&render);
        self.machine.shell(&tell);
        let said = self.machine.shell(&start);
        assert!(
            said.contains("/etc/nginx/viworks.conf fits this backend"),
            "{said}"
        );
        self.machine.shell(&gateways);
        self.is_connected_to("wss://localhost:443").await;
        let said = self.machine.shell(&check);
        for line in [
            "nginx can read it (nginx -t)",
            "gateways are passed through to 127.0.0.1:8081",
            "operators reach the API at 127.0.0.1:8080",
        ] {
            assert!(said.contains(line), "{said}");
        }
        // Operators come by its name, and past nginx no gateway does.
        let through = format!("SSL_CERT_FILE={CERTIFICATES}/fullchain.pem ");
        let run = viworks("run sys.uptime --gateway gw-1")
            .replace("http://127.0.0.1:8080", &format!("https://{API_NAME}"));
        let said = self.machine.shell(&(through + &run));
        assert!(said.contains("load"), "{said}");

        self.machine.shell(&format!(
            "rm /etc/viworks/conf.d/20-nginx.toml /etc/viworks/backend/conf.d/20-nginx.toml /etc/nginx/viworks.conf
             rm -r /etc/letsencrypt
             sed -i '/{API_NAME}/d' /etc/hosts
             systemctl disable --now nginx
             systemctl restart viworks-backend-agent {GATEWAY}"
        ));
        self.works().await;
    }

    fn certificate_is_there(&self) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([API_NAME.to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let folder = self.machine.path(CERTIFICATES);
        std::fs::create_dir_all(&folder).unwrap();
        // As certbot has it.
        let live = folder.parent().unwrap();
        std::fs::set_permissions(live, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(folder.join("fullchain.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("privkey.pem"), key.serialize_pem()).unwrap();
        self.machine
            .shell(&format!("echo '127.0.0.1 {API_NAME}' >>/etc/hosts"));
    }
}
