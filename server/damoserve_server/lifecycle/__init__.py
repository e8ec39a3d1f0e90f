"""The models that are served, changed while they are served: loaded, unloaded, exchanged, without a request lost.

Knows nothing of how requests are answered: it tells a `ProfileListener` of the profiles that come and go.

lifecycle   the operations, one at a time: load or unload a profile, serve another version, name a version
watch       follows the repository, and starts these operations when files have changed
management  starts and stops the admin service and the watch together
shutdown    the two lines that the log has of a stop
"""
