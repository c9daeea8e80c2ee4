"""Whether a merged model holds the adapters that it should hold."""
