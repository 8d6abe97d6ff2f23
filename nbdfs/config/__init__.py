"""The configuration file: stacks, mounts and servers under names."""
