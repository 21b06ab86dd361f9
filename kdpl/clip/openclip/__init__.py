"""CLIPs that open_clip builds: recipes of published weights, building without weights, files, tokenizers, other towers."""
