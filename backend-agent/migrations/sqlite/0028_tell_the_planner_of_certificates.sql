-- usable from: 19
-- What these tables are like at a site of ten thousand gateways, for the planner: without that it takes the key of a
-- certificate, entered by the tenant alone, for as good as the index by gateway, and has the certificates of all
-- gateways read for each one that connects.
ANALYZE certificates;
ANALYZE enrolments;
DELETE FROM sqlite_stat1 WHERE tbl IN ('certificates', 'enrolments');
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('certificates', 'certificates', '20000 20000 1'),
    ('certificates', 'certificates_by_gateway', '20000 20000 2'),
    ('enrolments', 'enrolments', '10000 10000 1'),
    ('enrolments', 'enrolments_by_ticket', '10000 10000 20');
ANALYZE sqlite_schema;
