"""From YAML to checked configs, with every problem named at its line."""
