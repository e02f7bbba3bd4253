-- Each index is a page more to write when a command is submitted, and mostly another one when it ends. The open
-- commands of a gateway are found by their orders, all of which are above its low-water mark; open runs by their open
-- commands; and the commands of a run, by their ids or by their states, in one index.
DROP INDEX open_runs;
DROP INDEX open_commands_by_gateway;
DROP INDEX commands_by_run_and_state;
DROP INDEX commands_by_run;
CREATE INDEX commands_by_run ON commands (tenant, run_id, command_id, state);
