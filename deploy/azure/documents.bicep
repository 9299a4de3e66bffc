// Documents every night, beside the workers of main.bicep: a job that starts at a set time, reads what is
// new or changed in a container, puts the prompts into the queue, and waits for the workers' answers.
//
//   az deployment group create --resource-group GROUP --template-file deploy/azure/documents.bicep \
//     --parameters storageAccount=contoso container=docs
//
// Needs `compute = 'containerApps'` with `scaleByQueue`: settings and image are those of the workers, so
// deploy this again after them. A night is safe to start twice: while one job conducts it, another ends
// with "nothing to do here", and one that was cut off is taken up where it stood, with no prompt paid for
// twice. So the platform may start it anew as it likes, and you by hand:
//
//   az containerapp job start --resource-group GROUP --name NAME-documents
targetScope = 'resourceGroup'

@description('The region of the environment.')
param location string = resourceGroup().location

@description('As in main.bicep.')
@minLength(3)
@maxLength(11)
param name string = 'promptmill'

@description('The storage account that holds the documents.')
param storageAccount string

@description('The resource group of that account.')
param storageGroup string = resourceGroup().name

@description('The container, and if only a folder of it is meant, that behind a slash.')
param container string

@description('When it starts, as five cron fields in UTC. The default is 22:00 in Tokyo.')
param startAt string = '0 13 * * *'

@description('By when the answers are wanted, in the time zone below. What has not been sent by then is left to the next night.')
param finishBy string = '06:00'

@description('The zone of `finishBy`.')
param timeZone string = 'Asia/Tokyo'

var prefix = toLower('${name}-${uniqueString(resourceGroup().id)}')
// Names of apps are short: at most 32 characters.
var short = take(prefix, 22)
// Above the time from start to `finishBy`. A job that is cut off loses nothing.
var nightSeconds = 36000
// What is asked. Take a recipe of your own; one without a schema needs one file only.
var recipe = loadTextContent('../../config/recipes/classify.toml')
var schema = loadTextContent('../../config/recipes/classify.schema.json')

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' existing = {
  name: '${prefix}-worker'
}

resource worker 'Microsoft.App/containerApps@2026-01-01' existing = {
  name: '${take(prefix, 24)}-worker'
}

module reader 'modules/documentsReader.bicep' = {
  name: 'documents-reader'
  scope: resourceGroup(storageGroup)
  params: {
    storageAccount: storageAccount
    principalId: identity.properties.principalId
  }
}

resource documents 'Microsoft.App/jobs@2026-01-01' = {
  name: '${short}-documents'
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    environmentId: worker.properties.environmentId
    workloadProfileName: 'Consumption'
    configuration: {
      triggerType: 'Schedule'
      scheduleTriggerConfig: {
        cronExpression: startAt
        parallelism: 1
        replicaCompletionCount: 1
      }
      replicaTimeout: nightSeconds
      replicaRetryLimit: 3
      registries: [
        {
          server: worker.properties.configuration.registries[0].server
          identity: identity.id
        }
      ]
      // Nothing secret: secrets are how a job here gets files.
      secrets: [
        {
          name: 'recipe'
          value: recipe
        }
        {
          name: 'schema'
          value: schema
        }
      ]
    }
    template: {
      containers: [
        {
          name: 'documents'
          image: worker.properties.template.containers[0].image
          args: [
            'documents'
            '--recipe'
            '/recipes/classify.toml'
            '--finish-by'
            finishBy
            '--time-zone'
            timeZone
          ]
          env: concat(worker.properties.template.containers[0].env, [
            {
              name: 'PROMPTMILL__DOCUMENTS__SOURCE'
              value: 'https://${storageAccount}.blob.${az.environment().suffixes.storage}/${container}'
            }
            {
              name: 'PROMPTMILL__DOCUMENTS__CREDENTIAL__MANAGED_IDENTITY__CLIENT_ID'
              value: identity.properties.clientId
            }
          ])
          resources: {
            cpu: json('1.0')
            memory: '2Gi'
          }
          volumeMounts: [
            {
              volumeName: 'recipes'
              mountPath: '/recipes'
            }
          ]
        }
      ]
      volumes: [
        {
          name: 'recipes'
          storageType: 'Secret'
          secrets: [
            {
              secretRef: 'recipe'
              path: 'classify.toml'
            }
            {
              secretRef: 'schema'
              path: 'classify.schema.json'
            }
          ]
        }
      ]
    }
  }
  // A night that may read nothing would end at once.
  dependsOn: [
    reader
  ]
}

@description('For `az containerapp job start` and `az containerapp job execution list`.')
output jobName string = documents.name
