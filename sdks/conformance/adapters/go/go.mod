module conformance

go 1.25

require github.com/openruntime/sdk-go v0.0.0

replace github.com/openruntime/sdk-go => ../../../go
