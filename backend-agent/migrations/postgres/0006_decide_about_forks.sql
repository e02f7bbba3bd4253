-- usable from: 1
-- An operator decides which of two holders keeps an identity. The one that is kept may pass once although its epoch was
-- left behind: as long as the confirmed epoch is where the decision put it. A fork says what was decided about its
-- refused holder, and by what that is told from the other. A backend that does not know this refuses the kept one as a
-- fork, until it dials one that does.
ALTER TABLE gateways ADD COLUMN kept_epoch bigint;

ALTER TABLE gateways ADD COLUMN kept_install_id text;

ALTER TABLE gateways ADD COLUMN kept_boot_id text;

ALTER TABLE gateways ADD COLUMN kept_agent_run_id text;

ALTER TABLE gateways ADD COLUMN kept_by text;

ALTER TABLE forks ADD COLUMN resolved_at bigint;

ALTER TABLE forks ADD COLUMN resolution text;

ALTER TABLE forks ADD COLUMN told_by text;
