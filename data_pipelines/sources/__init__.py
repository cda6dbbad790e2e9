"""Other ways to shards than a simulator and a policy: each module is a command, resumable, with its own `--help`."""
