-- Which of several backends has a session; null here, where there is one.
ALTER TABLE gateways ADD COLUMN session_instance TEXT;

-- The process that was alive when a copy of it spoke, and until when it is waited for; when the identity changed hands
-- within a minute (common::claims). A process of the backend remembered that for itself.
ALTER TABLE gateways ADD COLUMN favoured_run TEXT;
ALTER TABLE gateways ADD COLUMN favoured_until INTEGER;
ALTER TABLE gateways ADD COLUMN take_overs TEXT NOT NULL DEFAULT '[]';
