"""The command line: one module a subcommand, each with SUMMARY, add_arguments(parser) and run(arguments)."""
