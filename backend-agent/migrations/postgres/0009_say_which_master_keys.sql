-- usable from: 1
-- Which master keys a backend has, by a part of the digest of each: the one that makes others first, then the one beside
-- it. So that whoever takes the old one away knows that each backend was started anew. A backend that does not know
-- this says nothing.
ALTER TABLE instances ADD COLUMN masters bytea CHECK (length(masters) IN (8, 16));
