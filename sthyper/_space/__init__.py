"""What configuration spaces and encoders are made of; public names are in ``sthyper.config_space``."""
