-- usable from: 19
-- Until when the certificate is good that was shown last for a registered key, where that is another one than the
-- registered: one that was signed by hand for it. So that a gateway is counted among those that need its authority as long
-- as it gets in by that. It is learned when the gateway connects; a backend that does not know this notes nothing.
ALTER TABLE certificates ADD COLUMN shown_until INTEGER;
