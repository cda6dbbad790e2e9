"""One LightningModule for each training stage."""
