"""The SMP relay: `twistd smpd` runs it, `smpctl` looks after it."""
