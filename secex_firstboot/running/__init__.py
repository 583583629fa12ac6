"""In the provisioned system, for as long as it lives."""
