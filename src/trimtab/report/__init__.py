"""Reads run folders and draws one offline HTML page."""
