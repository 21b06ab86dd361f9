"""Many runs: results, reports, sweeps, and what a run costs."""
