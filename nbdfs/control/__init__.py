"""The control socket of a process: `nbdfs list`, `top`, `add`, `remove` and `resize` talk to it."""
