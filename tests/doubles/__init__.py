"""Stand-ins for services that the tests may not reach."""
