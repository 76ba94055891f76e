"""The sections of the page of `reproduce`, each computed from the whole directory."""
