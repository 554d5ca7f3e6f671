"""What runs around the work: progress, stages and their times, interrupts, threads, forked processes."""
