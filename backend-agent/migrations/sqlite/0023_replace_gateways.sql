-- usable from: 19
-- A machine takes the place of a gateway: by a ticket that is for exactly this gateway, or by one that allows it to
-- names that are taken. The certificates of the machine before are marked, so that it is told what became of it. What
-- came of an enrolment is answered again as long as the gateway is at the epoch that it was given there.
--
-- Gateways know of which ticket they came, and after how long an absence they are removed by themselves. Why a gateway
-- was revoked, and by whom, stands with it. A backend that does not know this takes no place by a ticket, removes
-- nobody, and leaves both only in the audit trail.
ALTER TABLE tickets ADD COLUMN replaces TEXT;

ALTER TABLE tickets ADD COLUMN allow_replace INTEGER NOT NULL DEFAULT 0;

ALTER TABLE tickets ADD COLUMN ephemeral_ms INTEGER;

ALTER TABLE enrolments ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;

ALTER TABLE certificates ADD COLUMN replaced_at INTEGER;

ALTER TABLE gateways ADD COLUMN ticket_id TEXT;

ALTER TABLE gateways ADD COLUMN ephemeral_ms INTEGER;

ALTER TABLE gateways ADD COLUMN revoked_by TEXT;

ALTER TABLE gateways ADD COLUMN revoked_reason TEXT;

UPDATE gateways SET ticket_id = e.ticket_id FROM enrolments AS e
WHERE e.tenant = gateways.tenant AND e.agent_id = gateways.agent_id;

CREATE INDEX gateways_ephemeral ON gateways (tenant, agent_id) WHERE ephemeral_ms IS NOT NULL AND revoked_at IS NULL;
