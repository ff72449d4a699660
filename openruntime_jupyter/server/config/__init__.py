"""Settings of the server extension as traits."""
