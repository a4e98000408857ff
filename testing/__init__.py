"""What tests and benchmarks share: worlds to be broken, servers, fakes. Not in the wheel."""
