"""One thin file per command: parse, build, call, print."""
