"""The command lines of other programs, done by nbdfs: one module each, with run(argv) -> exit status."""
