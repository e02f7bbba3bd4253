-- usable from: 19
-- Which master keys the backend had when it started last, by a part of the digest of each: the one that makes others
-- first, then the one beside it. So that whoever takes the old one away knows that it was started anew.
CREATE TABLE told_masters (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    masters BLOB    NOT NULL CHECK (length(masters) IN (8, 16))
) STRICT;
