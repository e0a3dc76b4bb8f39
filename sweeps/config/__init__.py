"""The configuration of a sweep: its YAML file, its fields, its rules, and the interfaces of backends and trackers."""
