// Small and cheap: serverless store, no workers while the queue is empty, one little model.
using 'main.bicep'

param name = 'millsdev'
param compute = 'containerApps'
param maxWorkers = 2
param models = [
  {
    name: 'gpt-4.1-mini'
    model: 'gpt-4.1-mini'
    version: '2025-04-14'
    sku: 'GlobalStandard'
    capacity: 50
    rpm: 50
  }
]
// `up` adds you; others are added here by their object ids.
param operators = []
