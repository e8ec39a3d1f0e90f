"""A built profile as a folder of files, and how an image goes into its network and boxes come out.

Shared by the server, which serves profiles, and the compress tools, which build and measure them, so that both treat an
image in exactly the same way. Knows nothing of training, of engines' runtimes or of gRPC.

manifest     what a profile is, how it was made and what it measured
recipe       how a profile is made, as data
repository   the folder of models, their versions and aliases
imaging      encoded images to arrays, and these to the network's input
postprocess  candidate boxes to detections in pixels of the image
maps         candidate boxes from the raw maps of the head
golden       the detections that every engine has to find again in the golden image
agreement    how far two profiles find the same boxes
runtimes     names and set-up of the runtimes
files        files that are replaced in one step, and folders that come with the package
faults       errors of pydantic in one line
extras       advice where the packages of an extra are missing
"""
