# The images of ViWorkS: `docker build --target backend|gateway`. docs/operations/containers.md says how they are run.

FROM rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
# The toolchain is here already; the file in the repository would have more of it fetched.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /source
COPY . .
RUN cargo build --locked --release -p viworks-backend-agent -p viworks-gateway-agent -p viworks-operator-cli

# Nothing but a C library and a shell, for the one step that makes keys; nobody but one user.
FROM debian:12.12-slim@sha256:d5d3f9c23164ea16f31852f95bd5959aad1c5e854332fe00f7b3a20fcc9f635c AS base
RUN groupadd --gid 65532 viworks \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin viworks

FROM base AS backend
COPY --from=build /source/target/release/viworks-backend-agent /source/target/release/viworks /usr/bin/
# Volumes that are mounted here for the first time begin with these owners and modes.
RUN install -d -o 65532 -g 65532 -m 0700 /etc/viworks/backend /var/lib/viworks-backend
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/viworks-backend-agent"]
CMD ["serve", "--config", "/etc/viworks/backend/backend.toml"]

FROM base AS gateway
COPY --from=build /source/target/release/viworks-gateway-agent /usr/bin/
COPY common/catalogue/ /etc/viworks/commands.d/
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/viworks-gateway /run/viworks-gateway
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/viworks-gateway-agent"]
CMD ["run", "--config", "/etc/viworks/identity/gateway.toml"]
