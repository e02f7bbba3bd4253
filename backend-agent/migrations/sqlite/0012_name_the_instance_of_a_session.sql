-- Which of several backends has a session; null here, where there is one.
ALTER TABLE gateways ADD COLUMN session_instance TEXT;
