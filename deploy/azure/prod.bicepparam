// A million prompts a night, off the public network.
using 'main.bicep'

param name = 'mills'
param compute = 'containerApps'
param maxWorkers = 20
param concurrency = 128
// 22:00 in Tokyo. For a night that has the quota to itself, add: param scaleByQueue = false
param nightlyAt = '0 13 * * *'
param models = [
  {
    name: 'gpt-4.1-mini'
    model: 'gpt-4.1-mini'
    version: '2025-04-14'
    sku: 'GlobalStandard'
    capacity: 2000
    rpm: 2000
  }
  {
    name: 'text-embedding-3-large'
    model: 'text-embedding-3-large'
    version: '1'
    sku: 'GlobalStandard'
    capacity: 1000
    rpm: 6000
  }
]
// At 100 jobs a second and some 10 units a job, doubled for reads and bursts.
param storeMaxRequestUnits = 4000
param queueTier = 'Premium'
param private = true
param logDays = 90
param operators = []
param operatorsAre = 'Group'
