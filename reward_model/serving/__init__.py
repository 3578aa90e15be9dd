"""The judge over HTTP: server, client and their wire format."""
