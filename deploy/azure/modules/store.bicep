// Cosmos DB: the outcomes. The containers are those that `promptmill init` makes
// (src/store/cosmos/init.rs), which an Entra ID identity may not make itself.
param location string
param prefix string
param databaseName string
@description('0 is serverless.')
param maxRequestUnits int
param private bool
param workspaceId string
@description('Who reads and writes items.')
param principalIds array

// Cosmos DB Built-in Data Contributor: a role of the account's own, not of the subscription's.
var dataContributor = '00000000-0000-0000-0000-000000000002'
var serverless = maxRequestUnits == 0

var everything = [
  {
    path: '/*'
  }
]

// Every indexed text costs request units at each write, and nobody searches these. A time to live of 0
// is none, of -1 only what an item names itself.
var containers = [
  {
    name: 'outcomes'
    key: '/pk'
    ttl: 0
    included: everything
    excluded: [
      {
        path: '/body/?'
      }
      {
        path: '/metadata/?'
      }
      {
        path: '/failure/message/?'
      }
    ]
  }
  {
    name: 'batches'
    key: '/id'
    ttl: 0
    included: everything
    excluded: []
  }
  {
    name: 'usage'
    key: '/batchId'
    ttl: 0
    included: everything
    excluded: []
  }
  {
    // A worker that says nothing for a while has no share any more. Read whole, so without an index.
    name: 'shares'
    key: '/pk'
    ttl: 60
    included: []
    excluded: everything
  }
  {
    // Bodies of jobs name their own time; those of outcomes stay.
    name: 'payloads'
    key: '/id'
    ttl: -1
    included: []
    excluded: everything
  }
]

resource account 'Microsoft.DocumentDB/databaseAccounts@2025-04-15' = {
  name: '${prefix}-store'
  location: location
  kind: 'GlobalDocumentDB'
  properties: {
    databaseAccountOfferType: 'Standard'
    capabilities: serverless ? [
      {
        name: 'EnableServerless'
      }
    ] : []
    locations: [
      {
        locationName: location
        failoverPriority: 0
        isZoneRedundant: false
      }
    ]
    consistencyPolicy: {
      defaultConsistencyLevel: 'Session'
    }
    // Entra ID alone opens the account, and only the templates change its containers.
    disableLocalAuth: true
    disableKeyBasedMetadataWriteAccess: true
    minimalTlsVersion: 'Tls12'
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
    backupPolicy: {
      type: 'Continuous'
      continuousModeProperties: {
        tier: 'Continuous7Days'
      }
    }
  }
}

resource database 'Microsoft.DocumentDB/databaseAccounts/sqlDatabases@2025-04-15' = {
  parent: account
  name: databaseName
  properties: {
    resource: {
      id: databaseName
    }
    // Shared by the containers, so that the small ones cost nothing of their own.
    options: serverless ? {} : {
      autoscaleSettings: {
        maxThroughput: maxRequestUnits
      }
    }
  }
}

// One after the other: the account refuses many changes at a time.
@batchSize(1)
resource container 'Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers@2025-04-15' = [
  for item in containers: {
    parent: database
    name: item.name
    properties: {
      resource: {
        id: item.name
        partitionKey: {
          paths: [
            item.key
          ]
          kind: 'Hash'
          version: 2
        }
        defaultTtl: item.ttl == 0 ? null : item.ttl
        indexingPolicy: {
          automatic: true
          indexingMode: 'consistent'
          includedPaths: item.included
          excludedPaths: item.excluded
        }
      }
    }
  }
]

resource access 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = [
  for principalId in principalIds: {
    parent: account
    name: guid(account.id, principalId, dataContributor)
    properties: {
      roleDefinitionId: '${account.id}/sqlRoleDefinitions/${dataContributor}'
      principalId: principalId
      scope: '${account.id}/dbs/${databaseName}'
    }
  }
]

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: account
  name: 'audit'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'ControlPlaneRequests'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'Requests'
        enabled: true
      }
    ]
  }
}

output accountId string = account.id
output endpoint string = account.properties.documentEndpoint
