"""From a YAML file to cells: `load` checks what the user wrote, `plan` says what will be measured and what that costs."""
