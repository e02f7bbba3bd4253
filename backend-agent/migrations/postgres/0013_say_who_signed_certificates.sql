-- usable from: 1
-- Which authority signed a gateway's certificate: SHA-256 of its name and its key, by which TLS knows it, whatever
-- certificate of it there is. So that whoever takes one out of client_ca_file is told first who needs it still. Of what
-- was registered before it is learned when the gateway connects; a backend that does not know this notes nothing.
ALTER TABLE certificates ADD COLUMN issuer bytea;
