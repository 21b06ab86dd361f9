"""Files, processes, images and messages: what every floor above stands on."""
