-- usable from: 19
-- An operator asks for another agent key: the generation that is wanted, which the gateway's own generation follows with
-- the first HELLO that is accepted with it. Whether its agent can take a key over a session is known since its last one.
ALTER TABLE gateways ADD COLUMN key_wanted INTEGER;

ALTER TABLE gateways ADD COLUMN takes_keys INTEGER CHECK (takes_keys IN (0, 1));

-- Of which master key the agent key and the token are that a gateway has, by its last session.
ALTER TABLE gateways ADD COLUMN key_master BLOB CHECK (length(key_master) = 8);
