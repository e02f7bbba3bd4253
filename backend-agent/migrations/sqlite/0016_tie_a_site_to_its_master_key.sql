-- What recognises the master key that every agent key of this site follows from: a backend with another one would tell
-- every gateway that its key is wrong. Derived from the key, and says nothing about it.
CREATE TABLE site (
    one       INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    key_check BLOB    NOT NULL CHECK (length(key_check) = 32)
) STRICT;
