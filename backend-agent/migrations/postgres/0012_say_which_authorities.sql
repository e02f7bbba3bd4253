-- usable from: 1
-- Which authorities a backend gives gateways and lets in, by the digest of its bundle. So that backends whose files
-- differ are told of: a gateway that one lets in another one refuses. A backend that does not know this says nothing.
ALTER TABLE instances ADD COLUMN authorities text COLLATE "C";
