module cableload

go 1.21
